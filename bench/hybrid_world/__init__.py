"""The parts of `./run bench hybrid`: uplinks, a simulated world, real processes, speech, tails, a plot."""
