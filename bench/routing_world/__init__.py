"""The world of bench/routing.py: links, arrivals, an edge box, a cloud, and those who choose between them."""
