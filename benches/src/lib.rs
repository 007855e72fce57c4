//! Hot-path benches: CPU per unit of work as a ratio to a peer in the same run.
