//! What a type can be decoded from: its fields, theirs, and so on.
//!
//! A type is asked to decode itself from nothing, again and again, each time one step further down. What it asks for there is what it
//! is made of: the derive names the fields of a struct and the words of an enum. Nothing has to be written down a second time.

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, Expected, MapAccess, SeqAccess, Unexpected, Visitor,
};

/// Deeper than that no type of ours is; one that has itself in it would be.
const DEEPEST: usize = 24;

/// What something is decoded from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    /// An object with these fields.
    Object(Vec<(&'static str, Shape)>),
    /// An object whose fields are data.
    Map(Box<Shape>),
    /// A list.
    List(Box<Shape>),
    /// A text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// True or false.
    Bool,
    /// A whole number; whether it may be below 0.
    Whole(bool),
    /// A number.
    Number,
    /// A number or a text, as these words say.
    NumberOrText(String),
    /// Something else.
    Anything,
}

/// What a type is decoded from.
pub(crate) fn shape<T: for<'de> Deserialize<'de>>() -> Shape {
    explore::<T>(&mut Vec::new())
}

fn explore<T: for<'de> Deserialize<'de>>(path: &mut Vec<Step>) -> Shape {
    if path.len() > DEEPEST {
        return Shape::Anything;
    }
    let Some(asked) = ask::<T>(path, Offer::Nothing).found else { return Shape::Anything };
    let mut below = |step: Step| {
        path.push(step);
        let shape = explore::<T>(path);
        path.pop();
        shape
    };
    match asked {
        Asked::Fields(fields) => {
            Shape::Object(fields.iter().map(|name| (*name, below(Step::Field(name)))).collect())
        }
        Asked::Map => Shape::Map(Box::new(below(Step::Value))),
        Asked::List => Shape::List(Box::new(below(Step::Item))),
        Asked::Plain(shape) => shape,
        Asked::Anything(expected) => {
            let takes = |offer: Offer| !ask::<T>(path, offer).wrong_type;
            match takes(Offer::Number) && takes(Offer::Text) {
                true => Shape::NumberOrText(expected),
                false => Shape::Anything,
            }
        }
    }
}

/// A step down.
#[derive(Clone, Copy, Debug)]
enum Step {
    Field(&'static str),
    Value,
    Item,
}

/// What is given to a type that takes anything.
#[derive(Clone, Copy, Debug)]
enum Offer {
    Nothing,
    Number,
    Text,
}

/// What a type asks for.
#[derive(Debug)]
enum Asked {
    Fields(&'static [&'static str]),
    Map,
    List,
    Plain(Shape),
    Anything(String),
}

/// What came of asking.
#[derive(Debug, Default)]
struct Answer {
    found: Option<Asked>,
    /// What was offered is of a type that is not taken.
    wrong_type: bool,
}

fn ask<T: for<'de> Deserialize<'de>>(path: &[Step], offer: Offer) -> Answer {
    let found = RefCell::new(None);
    let result = T::deserialize(Probe { path, offer, found: &found });
    Answer { found: found.into_inner(), wrong_type: result.is_err_and(|end| end.wrong_type) }
}

/// Ends a question.
#[derive(Debug, Default)]
struct End {
    wrong_type: bool,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("asked")
    }
}

impl std::error::Error for End {}

impl de::Error for End {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::default()
    }

    fn invalid_type(_: Unexpected<'_>, _: &dyn Expected) -> Self {
        Self { wrong_type: true }
    }
}

struct Probe<'p> {
    path: &'p [Step],
    offer: Offer,
    found: &'p RefCell<Option<Asked>>,
}

impl<'p> Probe<'p> {
    fn note<V>(&self, asked: Asked) -> Result<V, End> {
        *self.found.borrow_mut() = Some(asked);
        Err(End::default())
    }

    fn down(&self) -> Option<(Step, Probe<'p>)> {
        let (step, path) = self.path.split_first()?;
        Some((*step, Probe { path, ..*self }))
    }
}

/// The one entry of an object or a list that leads on.
struct Entry<'p>(Option<&'static str>, Option<Probe<'p>>);

impl<'de> MapAccess<'de> for Entry<'_> {
    type Error = End;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, End> {
        let Some(key) = self.0.take() else { return Ok(None) };
        seed.deserialize(Key(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, End> {
        seed.deserialize(self.1.take().ok_or_else(End::default)?)
    }
}

impl<'de> SeqAccess<'de> for Entry<'_> {
    type Error = End;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, End> {
        self.1.take().map(|probe| seed.deserialize(probe)).transpose()
    }
}

/// A name, or the number that it is.
struct Key(&'static str);

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, End> {
            visitor.visit_u64(self.0.parse().map_err(|_| End::default())?)
        })*
    };
}

impl<'de> Deserializer<'de> for Key {
    type Error = End;

    numbers! { deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, End> {
        visitor.visit_str(self.0)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

macro_rules! plain {
    ($($method:ident: $shape:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, End> {
            self.note(Asked::Plain($shape))
        })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = End;

    plain! {
        deserialize_bool: Shape::Bool;
        deserialize_i8: Shape::Whole(true);
        deserialize_i16: Shape::Whole(true);
        deserialize_i32: Shape::Whole(true);
        deserialize_i64: Shape::Whole(true);
        deserialize_u8: Shape::Whole(false);
        deserialize_u16: Shape::Whole(false);
        deserialize_u32: Shape::Whole(false);
        deserialize_u64: Shape::Whole(false);
        deserialize_f32: Shape::Number;
        deserialize_f64: Shape::Number;
        deserialize_char: Shape::Text;
        deserialize_str: Shape::Text;
        deserialize_string: Shape::Text;
        deserialize_identifier: Shape::Text;
        deserialize_bytes: Shape::Anything;
        deserialize_byte_buf: Shape::Anything;
        deserialize_unit: Shape::Anything;
        deserialize_ignored_any: Shape::Anything;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, End> {
        struct Words<'v, V>(&'v V);
        impl<'de, V: Visitor<'de>> fmt::Display for Words<'_, V> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.expecting(f)
            }
        }
        match self.offer {
            Offer::Nothing => {
                let words = Words(&visitor).to_string();
                self.note(Asked::Anything(words))
            }
            Offer::Number => visitor.visit_u64(1),
            Offer::Text => visitor.visit_str("1"),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, End> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, End> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, _: V) -> Result<V::Value, End> {
        self.note(Asked::Fields(&[]))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, End> {
        match self.down() {
            None => self.note(Asked::List),
            Some((_, probe)) => visitor.visit_seq(Entry(None, Some(probe))),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, End> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, End> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, End> {
        match self.down() {
            None => self.note(Asked::Map),
            // As good a name as a port.
            Some((_, probe)) => visitor.visit_map(Entry(Some("1"), Some(probe))),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, End> {
        match self.down() {
            None => self.note(Asked::Fields(fields)),
            Some((Step::Field(name), probe)) => visitor.visit_map(Entry(Some(name), Some(probe))),
            Some(_) => Err(End::default()),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, End> {
        self.note(Asked::Plain(Shape::Word(variants)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::model::values::{StringMatch, Timespan};

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "it is asked what it is made of, and never made")]
    #[serde(rename_all = "camelCase")]
    struct Inner {
        host_name: String,
        weight: Option<u32>,
    }

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "it is asked what it is made of, and never made")]
    enum Mode {
        #[serde(rename = "STRICT", alias = "HARD")]
        Strict,
    }

    #[derive(Deserialize)]
    #[allow(dead_code, reason = "it is asked what it is made of, and never made")]
    struct Outer {
        list: Vec<Inner>,
        ports: BTreeMap<u16, Mode>,
        on: bool,
        share: f64,
        offset: i64,
        timeout: Option<Timespan>,
        path: StringMatch,
        next: Option<Box<Outer>>,
    }

    #[test]
    fn a_type_tells_what_it_is_made_of() {
        let Shape::Object(fields) = shape::<Outer>() else { panic!("an object") };
        let of = |name: &str| fields.iter().find(|(known, _)| *known == name).unwrap().1.clone();
        let text = || Shape::Text;
        let inner = Shape::Object(vec![("hostName", text()), ("weight", Shape::Whole(false))]);
        assert_eq!(of("list"), Shape::List(Box::new(inner)));
        assert_eq!(of("ports"), Shape::Map(Box::new(Shape::Word(&["HARD", "STRICT"]))));
        assert_eq!((of("on"), of("share"), of("offset")), (Shape::Bool, Shape::Number, Shape::Whole(true)));
        assert_eq!(of("timeout"), Shape::NumberOrText("a duration such as \"30s\"".to_owned()));
        assert_eq!(of("path"), Shape::Object(vec![("exact", text()), ("prefix", text()), ("regex", text())]));
        // One that has itself in it ends.
        assert!(matches!(of("next"), Shape::Object(_)));
    }
}
