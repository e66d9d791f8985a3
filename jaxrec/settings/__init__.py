"""Settings: typed fields with ranges, and how words and TOML files become their values."""
