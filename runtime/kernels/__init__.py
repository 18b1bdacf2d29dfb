"""The cell's step in C++: its sources in `csrc/`, and the few lines that build, find and load the CPU library."""
