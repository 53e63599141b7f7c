"""The operator's language: config.toml, policy files, their reference and their tests."""
