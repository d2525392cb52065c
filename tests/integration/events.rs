//! `events` and `ps`.
