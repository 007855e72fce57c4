//! The appliance: wiring, threads, signals and the command line.
