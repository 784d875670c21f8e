// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! The macros that this tree takes from outside itself, under one name for both of its builds.
//!
//! Cargo takes them from crates.io. Kbuild (`CONFIG_RUST`) gives a module no such crates: there the same subset is
//! defined here. `RUSTFLAGS="--cfg CONFIG_RUST" cargo test -p exitregs-common` runs every test on that half.
//!
//! The subset of `bitflags!`: one public struct of a `u32` or `u64` per use; `bits`, `empty`, `all`,
//! `from_bits_retain`, `from_bits_truncate`, `is_empty`, `contains`, `intersects`, `iter_names`, and `|` and `|=`.

// Only Kbuild knows its CONFIG_ names, and a module takes only the macros it needs.
#![allow(unexpected_cfgs, unused_imports, unused_macros)]

#[cfg(not(CONFIG_RUST))]
pub(crate) use bitflags::bitflags;
#[cfg(not(CONFIG_RUST))]
pub(crate) use static_assertions::{const_assert, const_assert_eq};

#[cfg(CONFIG_RUST)]
pub(crate) use self::kbuild::{bitflags, const_assert, const_assert_eq};

#[cfg(CONFIG_RUST)]
mod kbuild {
    macro_rules! const_assert {
        ($condition:expr $(,)?) => {
            const _: () = assert!($condition);
        };
    }

    macro_rules! const_assert_eq {
        ($left:expr, $right:expr $(,)?) => {
            const _: () = assert!($left == $right);
        };
    }

    macro_rules! bitflags {
        (
            $(#[$struct_meta:meta])*
            pub struct $Flags:ident: $Bits:ty {
                $($(#[$flag_meta:meta])* const $FLAG:ident = $value:expr;)*
            }
        ) => {
            $(#[$struct_meta])*
            pub struct $Flags($Bits);

            #[allow(missing_docs)]
            impl $Flags {
                $($(#[$flag_meta])* pub const $FLAG: Self = Self($value);)*

                pub const fn empty() -> Self {
                    Self(0)
                }

                pub const fn all() -> Self {
                    Self(0 $(| Self::$FLAG.0)*)
                }

                pub const fn from_bits_retain(bits: $Bits) -> Self {
                    Self(bits)
                }

                pub const fn from_bits_truncate(bits: $Bits) -> Self {
                    Self(bits & Self::all().0)
                }

                pub const fn bits(&self) -> $Bits {
                    self.0
                }

                pub const fn is_empty(&self) -> bool {
                    self.0 == 0
                }

                pub const fn contains(&self, other: Self) -> bool {
                    self.0 & other.0 == other.0
                }

                pub const fn intersects(&self, other: Self) -> bool {
                    self.0 & other.0 != 0
                }

                pub fn iter_names(&self) -> impl Iterator<Item = (&'static str, Self)> {
                    const NAMES: &[(&str, $Flags)] = &[$((stringify!($FLAG), $Flags::$FLAG)),*];
                    let set = *self;
                    NAMES.iter().copied().filter(move |&(_, flag)| set.contains(flag))
                }
            }

            impl core::ops::BitOr for $Flags {
                type Output = Self;

                fn bitor(self, other: Self) -> Self {
                    Self(self.0 | other.0)
                }
            }

            impl core::ops::BitOrAssign for $Flags {
                fn bitor_assign(&mut self, other: Self) {
                    self.0 |= other.0;
                }
            }
        };
    }

    pub(crate) use {bitflags, const_assert, const_assert_eq};
}
