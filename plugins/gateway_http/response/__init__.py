"""Read what an upstream returns: whole bodies, event streams, errors.

A module imports only modules above it:

1. `json_scan`, `surrogates`, `tool_calls`: bytes and text
2. `upstream_errors`: error objects and error statuses; `body`: bounded reading
3. `validate`: checks of every response
4. `stream_state`: checks of every event; `whole`: whole responses
5. `operations`: the table of checks by kind; `relay`: streams
"""
