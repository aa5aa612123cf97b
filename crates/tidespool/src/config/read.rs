//! Reads settings from TOML, with the feature `toml`. Errors name the setting, its value as it was
//! given, and its place.
//!
//! serde names neither the table of a setting nor the allowed values. So the text is parsed twice:
//! once for the settings, once for the places of all keys and values.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigPlace};
use super::validate::{SPOOLS, Setting, names_of_spools, settings};
use super::{Config, SpoolConfig};
use crate::directory::is_name;

/// The most characters of a value that an error shows.
const SHOWN: usize = 64;

impl Config {
    /// Reads and validates settings in TOML.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Syntax`] if `text` is not TOML, [`ConfigError::Unknown`] for a setting that
    /// does not exist, [`ConfigError::Invalid`] for a value that is not allowed. Each names the
    /// place.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| syntax(text, &error))?;
        let known = settings(&with_spools_of(table.get_ref()));
        check_names(text, &known, "", table.get_ref())?;
        let config: Self = match toml::from_str(text) {
            Ok(config) => config,
            Err(error) => return Err(name_setting(text, &table, &error)),
        };
        config.validate().map_err(|error| as_given(error, text, table.get_ref()))?;
        Ok(config)
    }

    /// Reads and validates the settings in a TOML file.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Read`] if the file can't be read, and the errors of
    /// [`from_toml`](Self::from_toml). Each names the file.
    pub fn from_toml_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|err| ConfigError::Read {
            path: path.to_owned(),
            kind: err.kind(),
            reason: err.to_string(),
        })?;
        Self::from_toml(&text).map_err(|error| error.in_file(path))
    }

    /// Returns the settings as TOML, which [`from_toml`](Self::from_toml) reads back unchanged.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Syntax`] if `path` is not UTF-8: TOML text is UTF-8.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string(self)
            .map_err(|err| ConfigError::Syntax { at: ConfigPlace::default(), reason: err.to_string() })
    }
}

impl ConfigError {
    /// Adds the file from which the settings were read.
    fn in_file(mut self, file: &Path) -> Self {
        if let Self::Syntax { at, .. } | Self::Unknown { at, .. } | Self::Invalid { at, .. } = &mut self {
            at.file = Some(file.into());
        }
        self
    }
}

impl ConfigPlace {
    /// Returns the place of the byte `offset` in `text`.
    fn in_text(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { file: None, line: u32::try_from(line).ok(), column: u32::try_from(column).ok() }
    }
}

/// Returns the default settings, with the spools that have a table in the text. Without any, there
/// is one, so that the list of settings has its table.
fn with_spools_of(table: &DeTable<'_>) -> Config {
    let spools = table.get(SPOOLS).and_then(|spools| spools.get_ref().as_table());
    let named = spools.into_iter().flatten().map(|(name, _)| &**name.get_ref());
    let named = named.filter(|name| is_name(name)).chain(["name"]);
    named.fold(Config::without_path(), |config, name| config.spool(name, SpoolConfig::default()))
}

/// Checks that every key is a setting or a table of settings, and that each such table is a table.
fn check_names(text: &str, known: &[Setting], prefix: &str, table: &DeTable<'_>) -> Result<(), ConfigError> {
    for (key, value) in table {
        let path = format!("{prefix}{}", key.get_ref());
        if known.iter().any(|setting| setting.path == path) {
            continue;
        }
        if prefix.strip_suffix('.') == Some(SPOOLS) && !is_name(key.get_ref()) {
            return Err(ConfigError::Invalid {
                at: ConfigPlace::in_text(text, key.span().start),
                setting: SPOOLS.to_owned(),
                value: shown(text, key.span()),
                allowed: names_of_spools(),
            });
        }
        let below = format!("{path}.");
        let is_table = known.iter().any(|setting| setting.path.starts_with(&below));
        match value.get_ref() {
            DeValue::Table(table) if is_table => check_names(text, known, &below, table)?,
            _ if is_table => {
                let allowed = match &*path {
                    SPOOLS => names_of_spools(),
                    _ => format!("a table of settings: {}", names_in(known, &below)),
                };
                let at = ConfigPlace::in_text(text, value.span().start);
                return Err(ConfigError::Invalid {
                    at,
                    setting: path,
                    value: shown(text, value.span()),
                    allowed,
                });
            }
            _ => {
                let at = ConfigPlace::in_text(text, key.span().start);
                return Err(ConfigError::Unknown { at, setting: path, known: names_in(known, prefix) });
            }
        }
    }
    Ok(())
}

/// Returns the names of the settings, and tables of settings, directly below `prefix`.
fn names_in(known: &[Setting], prefix: &str) -> String {
    let below = known.iter().filter_map(|setting| setting.path.strip_prefix(prefix));
    let mut names: Vec<&str> = below.map(|rest| rest.split('.').next().unwrap_or(rest)).collect();
    names.dedup();
    names.join(", ")
}

/// Turns serde's error for a value of the wrong kind into one that names the setting.
fn name_setting(text: &str, table: &Spanned<DeTable<'_>>, error: &toml::de::Error) -> ConfigError {
    let found = error.span().and_then(|span| find(table.get_ref(), "", &span));
    let Some((path, span)) = found else { return syntax(text, error) };
    // The bounds may depend on the other settings. If those can't be read either, the bounds are
    // those with default settings.
    let mut others = table.clone();
    remove(others.get_mut(), &path);
    let others = Config::deserialize(toml::Deserializer::from(others))
        .unwrap_or_else(|_| with_spools_of(table.get_ref()));
    match settings(&others).into_iter().find(|setting| setting.path == path) {
        Some(Setting { path, form, allowed, .. }) => ConfigError::Invalid {
            at: ConfigPlace::in_text(text, span.start),
            setting: path,
            value: shown(text, span),
            allowed: format!("{form}{allowed}"),
        },
        None => syntax(text, error),
    }
}

/// Adds the place and the value as written in the text to an error of [`Config::validate`], if the
/// text has the setting.
fn as_given(error: ConfigError, text: &str, table: &DeTable<'_>) -> ConfigError {
    let ConfigError::Invalid { setting, value, allowed, .. } = error else { return error };
    match look_up(table, &setting) {
        Some(span) => {
            let at = ConfigPlace::in_text(text, span.start);
            ConfigError::Invalid { at, setting, value: shown(text, span), allowed }
        }
        None => ConfigError::Invalid { at: ConfigPlace::default(), setting, value, allowed },
    }
}

fn syntax(text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map(|span| ConfigPlace::in_text(text, span.start)).unwrap_or_default();
    ConfigError::Syntax { at, reason: error.to_string().trim_end().to_owned() }
}

/// Finds the setting whose value contains the byte range `wanted`, and the range of the value.
fn find(table: &DeTable<'_>, prefix: &str, wanted: &Range<usize>) -> Option<(String, Range<usize>)> {
    table.iter().find_map(|(key, value)| {
        let path = format!("{prefix}{}", key.get_ref());
        if let DeValue::Table(table) = value.get_ref()
            && let Some(found) = find(table, &format!("{path}."), wanted)
        {
            return Some(found);
        }
        let span = value.span();
        (span.start <= wanted.start && wanted.end <= span.end).then_some((path, span))
    })
}

/// Returns the byte range of a setting's value.
fn look_up(table: &DeTable<'_>, path: &str) -> Option<Range<usize>> {
    match path.split_once('.') {
        None => table.get(path).map(Spanned::span),
        Some((first, rest)) => match table.get(first)?.get_ref() {
            DeValue::Table(table) => look_up(table, rest),
            _ => None,
        },
    }
}

fn remove(table: &mut DeTable<'_>, path: &str) {
    match path.split_once('.') {
        None => drop(table.remove(path)),
        Some((first, rest)) => {
            if let Some(DeValue::Table(table)) = table.get_mut(first).map(Spanned::get_mut) {
                remove(table, rest);
            }
        }
    }
}

/// Returns the text of a byte range in one line, at most [`SHOWN`] characters of it.
fn shown(text: &str, span: Range<usize>) -> String {
    let mut value = text.get(span).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = value.char_indices().nth(SHOWN) {
        value.truncate(cut);
        value.push('…');
    }
    value
}
