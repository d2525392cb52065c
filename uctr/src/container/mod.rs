//! Containers: their records, how their config.json comes about, and the monitor of each.
