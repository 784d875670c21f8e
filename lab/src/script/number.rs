// SPDX-License-Identifier: MIT
//! Numbers as people write them in scripts: `512`, `"0x200"`; and values that depend on the turn.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A 64-bit number, written as a JSON number or as a string in hexadecimal with `0x` or in decimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(pub u64);

impl From<u64> for Number {
    fn from(n: u64) -> Self {
        Self(n)
    }
}

impl std::str::FromStr for Number {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        }
        .map(Self)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct NumberVisitor;

impl de::Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number below 2^64, or a string such as \"0x200\"")
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<Number, E> {
        Ok(Number(n))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
        text.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

/// A register's value: `base + step * turn`, modulo 2^64. Written as a number if the step is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Form", into = "Form")]
pub struct Value {
    /// In turn 0.
    pub base: u64,
    /// Added in each turn.
    pub step: u64,
}

impl Value {
    /// The same in every turn.
    pub const fn fixed(base: u64) -> Self {
        Self { base, step: 0 }
    }

    /// The value in a turn, which is what the guest's ADD and IMUL make of it.
    pub const fn at(self, turn: u64) -> u64 {
        self.base.wrapping_add(self.step.wrapping_mul(turn))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, a string such as \"0x200\", or {\"base\": …, \"step\": …}")]
enum Form {
    Fixed(Number),
    Stepped { base: Number, step: Number },
}

impl From<Form> for Value {
    fn from(form: Form) -> Self {
        match form {
            Form::Fixed(base) => Self::fixed(base.0),
            Form::Stepped { base, step } => Self { base: base.0, step: step.0 },
        }
    }
}

impl From<Value> for Form {
    fn from(value: Value) -> Self {
        match value.step {
            0 => Self::Fixed(Number(value.base)),
            step => Self::Stepped { base: Number(value.base), step: Number(step) },
        }
    }
}

/// Port numbers, as [`Number`]s are written.
pub(super) mod port {
    use super::{Deserialize, Deserializer, Number, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub fn serialize<S: Serializer>(port: &u16, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Number((*port).into()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
        let number = Number::deserialize(deserializer)?;
        u16::try_from(number.0)
            .map_err(|_| de::Error::custom(format!("{number} is no port: the last one is 0xffff")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_every_notation_and_written_in_hexadecimal() {
        for (text, number) in
            [("512", 512), (r#""0x200""#, 512), (r#""512""#, 512), (r#""0xffffffffffffffff""#, u64::MAX)]
        {
            assert_eq!(serde_json::from_str::<Number>(text).unwrap(), Number(number), "{text}");
        }
        assert_eq!(serde_json::to_string(&Number(512)).unwrap(), r#""0x200""#);
    }

    #[test]
    fn values_wrap_around() {
        let value = Value { base: u64::MAX, step: 2 };
        assert_eq!([value.at(0), value.at(1), value.at(u64::MAX)], [u64::MAX, 1, u64::MAX - 2]);
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(text, r#"{"base":"0xffffffffffffffff","step":"0x2"}"#);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert_eq!(serde_json::from_str::<Value>("7").unwrap(), Value::fixed(7));
    }
}
