//! What a table of the config is: the description of its keys, the macro that declares one, and reading one by its
//! description. The tables themselves are in [`super::keys`].

use super::mistake::{Hint, Mistake};
use super::placeholder;
use super::problem::{Problems, TextPosition};
use super::words::nearest;
use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

pub type Value<'t> = Spanned<DeValue<'t>>;

/// Reads the value of a key; `None` once a wrong one is reported.
pub type ReadValue<T> = fn(&mut Walk<'_>, &str, &Value<'_>) -> Option<T>;

/// A table of the config, or an inline table that is the value of a key.
#[derive(Debug)]
pub struct TableSpec {
    /// As the operator sees it: `[kafka]`; an inline table has its key's name.
    pub name: &'static str,
    pub keys: &'static [KeySpec],
    #[cfg(test)]
    pub docs: TableDocs,
}

/// Everything there is to say of a key, except how its value is read: the macro has that.
#[derive(Debug)]
pub struct KeySpec {
    pub name: &'static str,
    /// TOML.
    pub value: &'static str,
    pub shown: ShownValue,
    pub reload: Reload,
    #[cfg(test)]
    pub docs: KeyDocs,
}

/// What [`KeySpec::value`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShownValue {
    /// The default.
    Default,
    /// The default; its note is an example that says more.
    Instance,
    /// The default depends on something else, which its note names and [`super::resolve`] knows; the value stands
    /// in until then.
    Computed,
    /// There is no default; an example.
    Example,
    /// As `Example`, but the example config sets it.
    Sample,
    /// An example, which stands in for what is missing until that is reported.
    Required,
    /// The name of an optional table.
    Table,
}

/// What a running agent does with a changed value on SIGHUP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reload {
    AtOnce,
    /// Takes effect at once, over new connections.
    Reconnects,
    /// Takes effect only after a restart.
    Restart,
    /// `AtOnce`; `Restart` with exactly-once, where saved sequence numbers depend on it.
    AtOnceOrRestart,
    /// `Reconnects`; `Restart` with exactly-once.
    ReconnectsOrRestart,
    /// Belongs to the `[[files]]` it applies to.
    OfFiles,
}

#[cfg(test)]
#[derive(Debug)]
pub struct TableDocs {
    /// Commented out in the example.
    pub optional: bool,
    pub text: &'static str,
}

#[cfg(test)]
#[derive(Debug)]
pub struct KeyDocs {
    pub kind: fn() -> String,
    pub note: &'static str,
    /// For the example and the page.
    pub text: &'static str,
    /// For the page alone.
    pub more: &'static str,
    /// The keys within the value.
    pub inner: Option<&'static TableSpec>,
}

impl TableSpec {
    pub fn key(&self, name: &str) -> &'static KeySpec {
        let found = self.keys.iter().find(|k| k.name == name);
        found.unwrap_or_else(|| unreachable!("{name} is not a key of {}", self.name))
    }
}

/// Implemented by [`table!`].
pub trait Described: Sized {
    const TABLE: &'static TableSpec;

    fn read(section: &mut Section<'_, '_, '_>) -> Self;

    /// Asks for every key whose value is another in `new` whether the old one is to be kept, and puts it back if so.
    fn compare(&self, new: &mut Self, keep: &mut dyn FnMut(&'static TableSpec, &'static KeySpec) -> bool);
}

/// Compares by what is printed, because a compiled regular expression has no equality.
pub fn differ(a: &impl Debug, b: &impl Debug) -> bool {
    format!("{a:?}") != format!("{b:?}")
}

/// Declares a table: `pub struct …` with the struct that holds its values, `for …` for a struct of the stage whose options
/// these are. `optional` tables are commented out in the example; what follows in brackets may be left out:
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
        #[derive(Clone, Debug)]
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
                    if differ(&self.$field, &new.$field) && keep(Self::TABLE, key) {
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
    /// Keys that the command line gives, so that the file need not.
    pub given: &'static [&'static str],
    /// Number of the `[[files]]` table being read, over all files.
    pub source: usize,
    /// What `host` stands for.
    pub host: String,
    pub env: Environment,
}

/// A variable of the environment.
pub type Environment = fn(&str) -> Option<String>;

impl<'p> Walk<'p> {
    pub fn new(doc: usize, problems: &'p mut Problems) -> Self {
        Walk { doc, problems, given: &[], source: 0, host: String::new(), env: |_| None }
    }

    pub fn place(&self, at: usize) -> TextPosition {
        TextPosition { doc: self.doc, at }
    }

    /// Reports what is at `span`, unless the parser had to guess it.
    pub fn wrong(&mut self, span: Range<usize>, mistake: Mistake) {
        if !self.problems.is_guess(self.doc, &span) {
            self.problems.add(self.place(span.start), mistake);
        }
    }

    /// As `wrong`, for a reader that has nothing else to say of the value.
    pub fn refuse<T>(&mut self, v: &Value<'_>, mistake: Mistake) -> Option<T> {
        self.wrong(v.span(), mistake);
        None
    }

    /// The value with its placeholders filled in, those of a list too; the keys of a table have theirs filled one by one.
    /// `None` once a wrong one is reported.
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

    /// The value is not even of the right type.
    pub fn mismatch<T>(
        &mut self,
        key: &str,
        v: &Value<'_>,
        wanted: &'static str,
        example: &str,
    ) -> Option<T> {
        let is = match v.get_ref() {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.refuse(v, Mistake::Type(key.into(), is, wanted, example.into()))
    }

    /// The table at `v` as its description says, its keys known as those of source number `self.source`.
    pub fn table<T: Described>(&mut self, v: &Value<'_>) -> Option<T> {
        let found = v.get_ref().as_table()?;
        Some(self.section(self.place(v.span().start), vec![(self.doc, found)]))
    }

    /// A table whose first header is at `place`, with what each file says of it; where none does, every key is missing.
    pub fn section<T: Described>(&mut self, place: TextPosition, values: Vec<(usize, &DeTable<'_>)>) -> T {
        self.problems.header((T::TABLE.name, self.source), place);
        let mut section = Section { walk: self, table: T::TABLE, place, values };
        let read = T::read(&mut section);
        section.finish();
        read
    }

    /// Reports each key that is not one of `known`; `elsewhere` says in which table it belongs.
    pub fn unknown(
        &mut self,
        found: &DeTable<'_>,
        known: &[&'static str],
        table: &'static str,
        elsewhere: impl Fn(&str) -> Option<&'static str>,
    ) {
        for (key, _) in found.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref().as_ref();
            let hint = match (nearest(name, known.iter().copied()), elsewhere(name)) {
                (Some(near), _) => Hint::Nearest(near),
                (None, Some(other)) => Hint::Elsewhere(other),
                (None, None) => Hint::Known(known.to_vec()),
            };
            self.wrong(key.span(), Mistake::UnknownKey(name.into(), table, hint));
        }
    }
}

/// The file that was read before, a value's place, and the value with its placeholders filled in, if they are right.
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

    /// The key's value in the last file that has it, which becomes the one being read; with the file that was read before,
    /// and the value's place. Apart from `optional`, so that it is compiled once and not for every type.
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

    /// In place of a value that is missing or wrong, what the description shows.
    pub fn or_default<T>(&mut self, key: &'static str, read: ReadValue<T>) -> T {
        let found = self.optional(key, read);
        found.unwrap_or_else(|| parse_default(self.table.key(key), read))
    }

    fn finish(self) {
        let known: Vec<&str> = self.table.keys.iter().map(|k| k.name).collect();
        for (doc, values) in &self.values {
            let outer = std::mem::replace(&mut self.walk.doc, *doc);
            self.walk.unknown(values, &known, self.table.name, super::keys::elsewhere);
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

/// The value that a description shows. A test reads every one of them.
fn parse_default<T>(key: &'static KeySpec, read: ReadValue<T>) -> T {
    let text = format!("{} = {}", key.name, key.value);
    let table = DeTable::parse(&text).ok();
    let mut problems = Problems::default();
    let mut walk = Walk::new(0, &mut problems);
    let found = table.as_ref().and_then(|t| read(&mut walk, key.name, t.get_ref().get(key.name)?));
    found.unwrap_or_else(|| unreachable!("a description shows no value: {text}"))
}

/// Every key at its default.
pub fn defaults<T: Described>() -> T {
    let mut problems = Problems::default();
    Walk::new(0, &mut problems).section(TextPosition { doc: 0, at: 0 }, Vec::new())
}
