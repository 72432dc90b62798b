"""Which images can be decoded, and what is odd about the data: the scan and its cache, `check()`, duplicates."""
