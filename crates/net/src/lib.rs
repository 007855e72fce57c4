//! Ruleset plan as plain data and the kernel edge: nftables, links, sysctl, raw frames.
