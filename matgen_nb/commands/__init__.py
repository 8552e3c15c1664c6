"""The `matgen` command: options, one library call, one result."""
