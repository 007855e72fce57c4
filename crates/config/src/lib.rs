//! Configuration file format v1: text to typed Config, every problem reported at once.
