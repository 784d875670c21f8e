//! Emulated hosts, and guests that know which VM exits they caused.
