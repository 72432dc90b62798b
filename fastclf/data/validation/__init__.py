"""What is wrong with files: the scan, its cache, bad images, `check()`."""
