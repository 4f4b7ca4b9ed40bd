"""Looking at data: what is wrong with it, how long it is, and how it is mended."""
