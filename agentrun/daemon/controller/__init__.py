"""Keep the calls that matter alive when memory gets short: snapshot, decide (pure), apply."""
