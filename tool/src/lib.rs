//! The `exitregs` library.
