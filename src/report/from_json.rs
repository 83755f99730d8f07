//! Reads a snapshot from the JSON of a running agent, which may be of another version. A field that is missing or has
//! another type gets its default. Hand-written, because `serde` would generate 40 KB of code for it.

use serde_json::Value;

pub trait FromJson: Sized {
    fn from_json(v: &Value) -> Self;
}

/// Declares a struct that is written as JSON by `serde` and read by [`FromJson`].
macro_rules! json_struct {
    ($(#[$about:meta])* pub struct $name:ident { $($(#[$note:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        pub struct $name {
            $($(#[$note])* pub $field: $ty,)*
        }

        impl $crate::report::from_json::FromJson for $name {
            fn from_json(v: &serde_json::Value) -> Self {
                $name { $($field: $crate::report::from_json::FromJson::from_json(&v[stringify!($field)]),)* }
            }
        }
    };
}

pub(super) use json_struct;

macro_rules! plain {
    ($($ty:ty: $read:expr;)*) => {
        $(impl FromJson for $ty {
            fn from_json(v: &Value) -> Self {
                $read(v).unwrap_or_default()
            }
        })*
    };
}

plain! {
    bool: Value::as_bool;
    f64: Value::as_f64;
    i64: Value::as_i64;
    u64: Value::as_u64;
    i16: |v: &Value| v.as_i64().and_then(|n| n.try_into().ok());
    u32: |v: &Value| v.as_u64().and_then(|n| n.try_into().ok());
    String: |v: &Value| v.as_str().map(str::to_owned);
}

impl<T: FromJson> FromJson for Option<T> {
    fn from_json(v: &Value) -> Self {
        if v.is_null() { None } else { Some(T::from_json(v)) }
    }
}

impl<T: FromJson> FromJson for Vec<T> {
    fn from_json(v: &Value) -> Self {
        v.as_array().map(|all| all.iter().map(T::from_json).collect()).unwrap_or_default()
    }
}

impl<A: FromJson, B: FromJson> FromJson for (A, B) {
    fn from_json(v: &Value) -> Self {
        (A::from_json(&v[0]), B::from_json(&v[1]))
    }
}
