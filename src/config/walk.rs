//! Takes a parsed table apart, key by key, and says what is wrong with each at its place. Knows no key by name and fills in
//! no default; what a value may look like is [`super::values`]'s.

use super::nearest::nearest;
use super::places::{Place, Problems};
use super::syntax::Repaired;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub type Value<'t> = Spanned<DeValue<'t>>;

/// What stands at a key.
#[derive(Clone, Debug, Default)]
pub enum Field<T> {
    #[default]
    Missing,
    /// Something that was reported already; its default stands in so that the rest can be looked at.
    Bad,
    Set(T, Place),
}

impl<T> Field<T> {
    pub fn value(self) -> Option<T> {
        match self {
            Field::Set(value, _) => Some(value),
            _ => None,
        }
    }

    pub fn get(&self) -> Option<&T> {
        match self {
            Field::Set(value, _) => Some(value),
            _ => None,
        }
    }

    pub fn or(self, default: T) -> T {
        self.value().unwrap_or(default)
    }

    pub fn or_default(self) -> T
    where
        T: Default,
    {
        self.value().unwrap_or_default()
    }

    pub fn place(&self) -> Option<Place> {
        match self {
            Field::Set(_, place) => Some(*place),
            _ => None,
        }
    }

    pub fn is_missing(&self) -> bool {
        matches!(self, Field::Missing)
    }
}

/// Words that stand for something, the same in the config and on the command line.
pub trait Named: Copy + 'static {
    const NAMES: &'static [(&'static str, Self)];
}

pub fn by_name<T: Named>(s: &str) -> Result<T, String> {
    let found = T::NAMES.iter().find(|(name, _)| *name == s);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = T::NAMES.iter().map(|(name, _)| *name).collect();
        match nearest(s, names.iter().copied()) {
            Some(near) => format!("{s:?} is none of {}; did you mean {near:?}?", names.join(", ")),
            None => format!("{s:?} is none of {}", names.join(", ")),
        }
    })
}

/// One file being walked.
pub struct Walk<'p> {
    pub doc: usize,
    pub text: &'p Repaired,
    pub problems: &'p mut Problems,
}

impl Walk<'_> {
    /// Place of an offset that the parser gave.
    pub fn place(&self, at: usize) -> Place {
        self.problems.place(self.doc, self.text.original(at))
    }

    /// Reports what stands at `span`, unless the parser had to guess it.
    pub fn wrong(&mut self, span: Range<usize>, what: impl Into<String>, instead: impl Into<String>) {
        let original = self.text.original(span.start)..self.text.original(span.end);
        if !self.problems.is_guess(self.doc, &original) {
            self.problems.add(self.place(span.start), what, instead);
        }
    }

    pub fn mismatch(&mut self, key: &str, v: &Value<'_>, wanted: &str, example: &str) {
        let is = match v.get_ref() {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.wrong(v.span(), format!("`{key}` is {is}, not {wanted}"), format!("write {key} = {example}"));
    }

    /// A text that `parse` understands.
    pub fn parsed<T>(
        &mut self,
        key: &str,
        v: &Value<'_>,
        (wanted, example): (&str, &str),
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Some(s) = v.get_ref().as_str() else {
            self.mismatch(key, v, wanted, example);
            return None;
        };
        parse(s)
            .map_err(|why| {
                let what = format!("`{key}`: {s:?} is not {wanted}: {why}");
                self.wrong(v.span(), what, format!("write for example {key} = {example}"));
            })
            .ok()
    }
}

/// A table being taken apart. Every key that was not asked for by the end is unknown.
pub struct Section<'a, 'p, 't> {
    pub walk: &'a mut Walk<'p>,
    name: &'static str,
    table: &'t DeTable<'t>,
    known: Vec<&'static str>,
}

impl<'a, 'p, 't> Section<'a, 'p, 't> {
    /// `name` as the operator sees it: `[kafka]`.
    pub fn new(walk: &'a mut Walk<'p>, name: &'static str, table: &'t DeTable<'t>) -> Self {
        Section { walk, name, table, known: Vec::new() }
    }

    /// The value at `key` as `read` understands it.
    pub fn field<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Walk<'p>, &str, &Value<'_>) -> Option<T>,
    ) -> Field<T> {
        self.known.push(key);
        let Some(v) = self.table.get(key) else { return Field::Missing };
        let place = self.walk.place(v.span().start);
        read(self.walk, key, v).map_or(Field::Bad, |value| Field::Set(value, place))
    }

    /// Reports what is left. `elsewhere` tells in which table a key belongs that is unknown in this one.
    pub fn finish(self, elsewhere: impl Fn(&str) -> Option<&'static str>) {
        for (key, _) in self.table.iter().filter(|(key, _)| !self.known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref().as_ref();
            let instead = match (nearest(name, self.known.iter().copied()), elsewhere(name)) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, Some(table)) => format!("it belongs in {table}"),
                (None, None) => format!("known here: {}", self.known.join(", ")),
            };
            self.walk.wrong(key.span(), format!("unknown key `{name}` in {}", self.name), instead);
        }
    }
}
