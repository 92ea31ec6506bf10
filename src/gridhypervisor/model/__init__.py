"""The nouns: records, specs, views, and what crosses to a site. Frozen, validated, and free of I/O."""
