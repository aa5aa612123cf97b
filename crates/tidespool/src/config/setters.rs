//! One setter for each setting, with the same name: `Config::new(path).memory_budget(bytes)`.

/// Generates the setters of a struct. `some` marks an `Option` field, whose setter takes the inner
/// value.
macro_rules! setters {
    ($settings:ident { $($name:ident: $kind:ident $($inner:ident)?,)* }) => {
        impl $settings {
            $($crate::config::setters::setter!($name: $kind $($inner)?);)*
        }
    };
}

macro_rules! setter {
    ($name:ident: some $kind:ident) => {
        #[doc = concat!("Sets [`", stringify!($name), "`](field@Self::", stringify!($name), ").")]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = Some($name);
            self
        }
    };
    ($name:ident: $kind:ident) => {
        #[doc = concat!("Sets [`", stringify!($name), "`](field@Self::", stringify!($name), ").")]
        #[must_use]
        pub fn $name(mut self, $name: $kind) -> Self {
            self.$name = $name;
            self
        }
    };
}

pub(super) use {setter, setters};
