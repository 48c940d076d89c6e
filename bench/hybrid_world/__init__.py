"""The parts of `./run bench hybrid`."""
