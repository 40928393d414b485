"""What one MAXL iteration costs, in seconds and in bytes, beside other ways to write it. Not part of the package."""
