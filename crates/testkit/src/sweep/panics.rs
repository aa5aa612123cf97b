use std::panic;
use std::sync::Once;

use parking_lot::Mutex;

/// What threads of spools said when they panicked. A spool catches it, and goes on or says that it can't; a sweep wants to know.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
static WATCHING: Once = Once::new();

/// How many there were so far. From the first call on they are counted.
pub(super) fn count() -> usize {
    WATCHING.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            let thread = std::thread::current();
            if let Some(name) = thread.name().filter(|name| name.starts_with("tidespool-")) {
                SEEN.lock().push(format!("{name}: {what}"));
            }
            before(what);
        }));
    });
    SEEN.lock().len()
}

/// The first one after so many.
pub(super) fn since(count: usize) -> Option<String> {
    SEEN.lock().get(count).cloned()
}
