"""The shell around simulated studies: processes, progress, pages. What is simulated lies in `sim`."""
