//! The JSON of an event before validation.
//!
//! A missing field or a wrong type does not end the parse, so that one pass finds every invalid field. This module
//! does not validate values. Strings without escapes are borrowed from the input.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The value in the place of a `T`.
#[derive(Default)]
pub(crate) enum Slot<T> {
    #[default]
    Missing,
    /// A value of another type, with the type's name in errors: `null`, `a number`.
    Wrong(&'static str),
    Is(T),
}

pub(crate) type Text<'a> = Slot<Cow<'a, str>>;

#[derive(serde::Deserialize)]
pub(crate) struct RawEvent<'a> {
    #[serde(rename = "correlationId", borrow, default)]
    pub(crate) correlation_id: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) data: Slot<RawData<'a>>,
}

#[derive(Default, serde::Deserialize)]
pub(crate) struct RawData<'a> {
    #[serde(borrow, default)]
    pub(crate) id: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) title: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) description: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) status: Text<'a>,
}

/// Deserializes a `Slot<T>` from any JSON value.
struct AnyValue<T>(PhantomData<T>);

/// A type that an event expects. The default of each method answers a wrong type.
trait Wanted<'de>: Sized {
    fn text(_text: Cow<'de, str>) -> Slot<Self> {
        Slot::Wrong("a string")
    }
    fn object<A: MapAccess<'de>>(mut map: A) -> Result<Slot<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Slot::Wrong("an object"))
    }
}

impl<'de: 'a, 'a> Wanted<'de> for Cow<'a, str> {
    fn text(text: Cow<'de, str>) -> Slot<Self> {
        Slot::Is(text)
    }
}

macro_rules! wanted_object {
    ($name:ident) => {
        impl<'de: 'a, 'a> Wanted<'de> for $name<'a> {
            fn object<A: MapAccess<'de>>(map: A) -> Result<Slot<Self>, A::Error> {
                Self::deserialize(MapAccessDeserializer::new(map)).map(Slot::Is)
            }
        }
    };
}
wanted_object!(RawEvent);
wanted_object!(RawData);

impl<'de, T: Wanted<'de>> Visitor<'de> for AnyValue<T> {
    type Value = Slot<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Slot<T>, E> {
        Ok(T::text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Slot<T>, E> {
        Ok(T::text(Cow::Owned(text.to_owned())))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Slot<T>, E> {
        Ok(Slot::Wrong("a boolean"))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Slot<T>, E> {
        Ok(Slot::Wrong("a number"))
    }
    fn visit_u64<E>(self, _: u64) -> Result<Slot<T>, E> {
        Ok(Slot::Wrong("a number"))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Slot<T>, E> {
        Ok(Slot::Wrong("a number"))
    }
    fn visit_unit<E>(self) -> Result<Slot<T>, E> {
        Ok(Slot::Wrong("null"))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Slot<T>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Slot::Wrong("an array"))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Slot<T>, A::Error> {
        T::object(map)
    }
}

impl<'de, T: Wanted<'de>> Deserialize<'de> for Slot<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue(PhantomData))
    }
}
