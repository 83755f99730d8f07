//! The macro that declares a config table and its keys, and the parser driven by such a description. The tables
//! themselves are in [`super::keys`].

use super::mistake::{Hint, Mistake};
use super::placeholder;
use super::problem::{Problems, TextPosition};
use super::spec::{KeySpec, ShownValue, TableSpec};
use super::words::nearest;
use std::borrow::Cow;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

pub type Value<'t> = Spanned<DeValue<'t>>;

/// Reads the value of a key; `None` after reporting an invalid one.
pub type ReadValue<T> = fn(&mut Walk<'_>, &str, &Value<'_>) -> Option<T>;

/// Implemented by [`table!`].
pub trait Described: Sized {
    const TABLE: &'static TableSpec;

    fn read(section: &mut Section<'_, '_, '_>) -> Self;

    /// For every key that differs in `new`, asks whether to keep the old value, and restores it if so.
    fn compare(&self, new: &mut Self, keep: &mut dyn FnMut(&'static TableSpec, &'static KeySpec) -> bool);
}

/// Declares a table: `pub struct …` also defines the struct of its values, `for …` uses the option struct of a stage.
/// `optional` tables are commented out in the example; parts in brackets may be omitted:
///
/// ```text
/// pub struct Type "[table]" [optional] [: "text"] {
///     field [as "key"]: Type = reader("kind of value" [=> table within the value]), ShownValue("value" [, "note"]), Reload,
///         "text for the example and the page" [, "more for the page"];
/// }
/// ```
macro_rules! table {
    (pub struct $type:ident $name:literal $($optional:ident)? $(: $about:literal)? {
        $($field:ident $(as $alias:literal)? : $ty:ty = $read:ident($kind:expr $(=> $inner:ty)?),
            $shown:ident($value:literal $(, $note:literal)?), $reload:ident, $text:literal $(, $more:literal)?;)*
    }) => {
        #[doc = concat!("`", $name, "`")]
        #[derive(Clone, PartialEq, Debug)]
        pub struct $type {
            $(pub $field: $ty,)*
        }

        table! { for $type $name $($optional)? $(: $about)? {
            $($field $(as $alias)? : $ty = $read($kind $(=> $inner)?),
                $shown($value $(, $note)?), $reload, $text $(, $more)?;)*
        } }
    };

    (for $type:ident $name:literal $($optional:ident)? $(: $about:literal)? {
        $($field:ident $(as $alias:literal)? : $ty:ty = $read:ident($kind:expr $(=> $inner:ty)?),
            $shown:ident($value:literal $(, $note:literal)?), $reload:ident, $text:literal $(, $more:literal)?;)*
    }) => {
        impl Described for $type {
            const TABLE: &'static TableSpec = &TableSpec {
                name: $name,
                keys: &[$(KeySpec {
                    name: table!(@name $field $($alias)?),
                    value: $value,
                    shown: ShownValue::$shown,
                    reload: Reload::$reload,
                    #[cfg(test)]
                    docs: KeyDocs {
                        kind: || String::from($kind),
                        note: concat!($($note)?),
                        text: $text,
                        more: concat!($($more)?),
                        inner: table!(@inner $($inner)?),
                    },
                },)*],
                #[cfg(test)]
                docs: TableDocs {
                    optional: !stringify!($($optional)?).is_empty(),
                    text: concat!($($about)?),
                },
            };

            fn read(section: &mut Section<'_, '_, '_>) -> Self {
                $(let $field: $ty = table!(@get $shown section (table!(@name $field $($alias)?)) $read);)*
                $type { $($field),* }
            }

            fn compare(
                &self,
                new: &mut Self,
                keep: &mut dyn FnMut(&'static TableSpec, &'static KeySpec) -> bool,
            ) {
                $({
                    let key = Self::TABLE.key(table!(@name $field $($alias)?));
                    if self.$field != new.$field && keep(Self::TABLE, key) {
                        new.$field.clone_from(&self.$field);
                    }
                })*
            }
        }
    };

    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $alias:literal) => { $alias };
    (@inner) => { None };
    (@inner $inner:ty) => { Some(<$inner as Described>::TABLE) };
    (@get Example $section:ident ($key:expr) $read:ident) => { $section.optional($key, $read) };
    (@get Sample $section:ident ($key:expr) $read:ident) => { $section.optional($key, $read) };
    (@get Table $section:ident ($key:expr) $read:ident) => { $section.optional($key, $read) };
    (@get $shown:ident $section:ident ($key:expr) $read:ident) => { $section.or_default($key, $read) };
}

pub(super) use table;

/// The files being read.
pub struct Walk<'p> {
    /// The one whose value is being read.
    pub doc: usize,
    pub problems: &'p mut Problems,
    /// Keys set on the command line, which the file need not contain.
    pub given: &'static [&'static str],
    /// Number of the current `[[files]]` table, over all files.
    pub source: usize,
    /// The value of `${host}`.
    pub host: String,
    pub env: Environment,
    /// The table in which a misplaced key belongs.
    pub elsewhere: fn(&str) -> Option<&'static str>,
}

/// A variable of the environment.
pub type Environment = fn(&str) -> Option<String>;

impl<'p> Walk<'p> {
    pub fn new(doc: usize, problems: &'p mut Problems) -> Self {
        Walk { doc, problems, given: &[], source: 0, host: String::new(), env: |_| None, elsewhere: |_| None }
    }

    pub fn place(&self, at: usize) -> TextPosition {
        TextPosition { doc: self.doc, at }
    }

    /// Reports a problem at `span`, unless the parser had to guess there.
    pub fn wrong(&mut self, span: Range<usize>, mistake: Mistake) {
        if !self.problems.is_guess(self.doc, &span) {
            self.problems.add(self.place(span.start), mistake);
        }
    }

    /// Like `wrong`, returning `None` for the reader.
    pub fn refuse<T>(&mut self, v: &Value<'_>, mistake: Mistake) -> Option<T> {
        self.wrong(v.span(), mistake);
        None
    }

    /// The value with its placeholders filled in, also within a list; in a table each key's value is filled in
    /// separately. `None` after reporting an invalid one.
    pub fn filled<'v, 't>(&mut self, key: &str, v: &'v Value<'t>) -> Option<Cow<'v, Value<'t>>> {
        let is_filled = |v: &Value<'_>| v.get_ref().as_str().is_some_and(|text| text.contains("${"));
        let value = match v.get_ref() {
            DeValue::String(text) if is_filled(v) => {
                let text = placeholder::fill(text, &self.host, self.env);
                DeValue::String(match text {
                    Ok(text) => text.into(),
                    Err(why) => return self.refuse(v, Mistake::Placeholder(key.into(), why)),
                })
            }
            DeValue::Array(items) if items.iter().any(is_filled) => {
                let mut all = DeArray::new();
                for item in items.iter() {
                    all.push(self.filled(key, item)?.into_owned());
                }
                DeValue::Array(all)
            }
            _ => return Some(Cow::Borrowed(v)),
        };
        Some(Cow::Owned(Spanned::new(v.span(), value)))
    }

    /// The value has the wrong type.
    pub fn mismatch<T>(
        &mut self,
        key: &str,
        v: &Value<'_>,
        wanted: &'static str,
        example: &str,
    ) -> Option<T> {
        self.refuse(v, wrong_type(key, v, wanted, example))
    }

    /// Reads the table at `v` by its description; its keys belong to source number `self.source`.
    pub fn table<T: Described>(&mut self, v: &Value<'_>) -> Option<T> {
        let found = v.get_ref().as_table()?;
        Some(self.section(self.place(v.span().start), vec![(self.doc, found)]))
    }

    /// Reads a table whose first header is at `place`, from each file that has it; if none has, all of its keys are
    /// missing.
    pub fn section<T: Described>(&mut self, place: TextPosition, values: Vec<(usize, &DeTable<'_>)>) -> T {
        self.problems.header((T::TABLE.name, self.source), place);
        let mut section = Section { walk: self, table: T::TABLE, place, values };
        let read = T::read(&mut section);
        section.finish();
        read
    }

    /// Reports each key not in `known`.
    pub fn unknown(&mut self, found: &DeTable<'_>, known: &[&'static str], table: &'static str) {
        for (key, _) in found.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref().as_ref();
            let hint = match (nearest(name, known), (self.elsewhere)(name)) {
                (Some(near), _) => Hint::Nearest(near),
                (None, Some(other)) => Hint::Elsewhere(other),
                (None, None) => Hint::Known(known.to_vec()),
            };
            self.wrong(key.span(), Mistake::UnknownKey(name.into(), table, hint));
        }
    }
}

fn wrong_type(key: &str, v: &Value<'_>, wanted: &'static str, example: &str) -> Mistake {
    let is = match v.get_ref() {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    Mistake::Type(key.into(), is, wanted, example.into())
}

/// The previously read file, a value's place, and the value with its placeholders filled in, if they are valid.
type FoundValue<'t> = (usize, Range<usize>, Option<Cow<'t, Value<'t>>>);

/// A table while its keys are being read.
pub struct Section<'a, 'p, 't> {
    walk: &'a mut Walk<'p>,
    table: &'static TableSpec,
    place: TextPosition,
    /// Of each file that has the table, its number; later ones win.
    values: Vec<(usize, &'t DeTable<'t>)>,
}

impl<'t> Section<'_, '_, 't> {
    pub fn optional<T>(&mut self, key: &'static str, read: ReadValue<T>) -> Option<T> {
        let (outer, span, value) = self.find(key)?;
        let found = value.and_then(|v| read(self.walk, key, &v));
        self.found(key, outer, span, found.is_some());
        found
    }

    /// Finds the key's value in the last file that has it, and makes that the current file. Returns also the previous
    /// file and the value's place. Separate from `optional`, so that it is compiled once rather than for every type.
    fn find(&mut self, key: &'static str) -> Option<FoundValue<'t>> {
        let (doc, v) = self.values.iter().rev().find_map(|(doc, t)| Some((*doc, t.get(key)?)))?;
        let outer = std::mem::replace(&mut self.walk.doc, doc);
        Some((outer, v.span(), self.walk.filled(key, v)))
    }

    fn found(&mut self, key: &'static str, outer: usize, span: Range<usize>, good: bool) {
        let id = (self.table.name, self.walk.source);
        self.walk.problems.written(id, key, self.walk.doc, span, good);
        self.walk.doc = outer;
    }

    /// The placeholder for a missing or invalid value: the one shown in the description.
    pub fn or_default<T>(&mut self, key: &'static str, read: ReadValue<T>) -> T {
        let found = self.optional(key, read);
        found.unwrap_or_else(|| parse_default(self.table.key(key), read))
    }

    fn finish(self) {
        let known: Vec<&str> = self.table.keys.iter().map(|k| k.name).collect();
        for (doc, values) in &self.values {
            let outer = std::mem::replace(&mut self.walk.doc, *doc);
            self.walk.unknown(values, &known, self.table.name);
            self.walk.doc = outer;
        }
        for key in self.table.keys {
            let is_there = self.values.iter().any(|(_, t)| t.contains_key(key.name));
            if key.shown == ShownValue::Required && !is_there && !self.walk.given.contains(&key.name) {
                let mistake = Mistake::MissingKey(key, self.table.name);
                self.walk.problems.add_missing(self.place, mistake);
            }
        }
    }
}

/// The value shown in a description. A test parses all of them.
fn parse_default<T>(key: &'static KeySpec, read: ReadValue<T>) -> T {
    let mut found = None;
    with_default(key, &mut |walk, value| found = read(walk, key.name, value));
    found.unwrap_or_else(|| unreachable!("a description shows no value: {} = {}", key.name, key.value))
}

/// Apart from `parse_default`, so that it is compiled once and not for every type.
fn with_default(key: &'static KeySpec, read: &mut dyn FnMut(&mut Walk<'_>, &Value<'_>)) {
    let text = format!("{} = {}", key.name, key.value);
    let mut problems = Problems::default();
    let table = DeTable::parse(&text).ok();
    if let Some(value) = table.as_ref().and_then(|t| t.get_ref().get(key.name)) {
        read(&mut Walk::new(0, &mut problems), value);
    }
}

/// All keys at their defaults.
pub fn defaults<T: Described>() -> T {
    let mut problems = Problems::default();
    Walk::new(0, &mut problems).section(TextPosition { doc: 0, at: 0 }, Vec::new())
}
