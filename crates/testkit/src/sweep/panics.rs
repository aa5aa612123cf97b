use std::panic;
use std::sync::Once;

use parking_lot::Mutex;

/// The panic messages of spool threads. A spool catches panics, and continues or reports an error;
/// a sweep counts each panic as a violation.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
static WATCHING: Once = Once::new();

/// Returns the number of panics so far. The first call starts the counting.
pub(super) fn count() -> usize {
    WATCHING.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            let thread = std::thread::current();
            if let Some(name) = thread.name().filter(|name| name.starts_with("tide-")) {
                SEEN.lock().push(format!("{name}: {what}"));
            }
            before(what);
        }));
    });
    SEEN.lock().len()
}

/// Returns panic number `count`, from 0: the first one after `count()` returned this number.
pub(super) fn since(count: usize) -> Option<String> {
    SEEN.lock().get(count).cloned()
}
