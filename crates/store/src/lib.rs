//! Durable state: one redb transaction per registrar batch.
