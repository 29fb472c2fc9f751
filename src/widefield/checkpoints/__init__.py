"""State dicts in, state dicts out: published key names and ours, and safe files."""
