"""Wire formats: parse a request, render its response. No sockets, no clocks.

`operations` maps each kind of work to its operation, and `operation` is the interface. Each operation has a module:
`chat`, `completions`, `embeddings`, `transcriptions`, `tasks`, `relayed`. `routes` maps methods and paths to kinds.
"""
