"""A run at work for other programs, over HTTP, JSON in and out: `jaxrec[serve]`.

A request is checked (`forms`) and bounded (`guard`, `connections`), joined with others of its kind
(`batches`), answered from the run that is open (`answers`, `opened`) and counted (`counts`);
`application` names the addresses, and `server` starts and ends it all.
"""
