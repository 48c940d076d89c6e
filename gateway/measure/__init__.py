"""What is known of the world, by measurement: links, the device, how long work takes. Unknown is None, never 0."""
