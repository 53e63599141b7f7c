"""Run the test suite: lint, native tests, and parts of the integration tests in guests (tests/run)."""
