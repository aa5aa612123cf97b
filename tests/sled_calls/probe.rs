//! Tests that the library fails the selected calls. Otherwise every other test of this target would
//! pass without a fault.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::child::{End, run};
use crate::control::{Control, Fault, KINDS};
use crate::event::{Event, Report};
use crate::layout::Call;
use crate::tasks::{Ending, Task, What};

/// Makes one call on a file in this directory.
type Make = fn(&Path) -> io::Result<()>;

/// The calls of the child, in this order. `sync_file_range` needs unsafe code and is omitted.
const CALLED: [(Call, Make); 11] = [
    (Call::Open, |dir| File::open(dir.join("x")).map(drop)),
    (Call::Read, |dir| opened(dir)?.read(&mut [0; 8]).map(drop)),
    (Call::Pread, |dir| opened(dir)?.read_at(&mut [0; 8], 0).map(drop)),
    (Call::Write, |dir| opened(dir)?.write(&[0; 8]).map(drop)),
    (Call::Pwrite, |dir| opened(dir)?.write_at(&[0; 8], 0).map(drop)),
    (Call::Fsync, |dir| opened(dir)?.sync_all()),
    (Call::Fdatasync, |dir| opened(dir)?.sync_data()),
    (Call::Ftruncate, |dir| opened(dir)?.set_len(8)),
    (Call::Rename, |dir| fs::rename(dir.join("x"), dir.join("x"))),
    (Call::Unlink, |dir| fs::remove_file(dir.join("y"))),
    (Call::Mkdir, |dir| fs::create_dir(dir.join("z"))),
];

fn opened(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(dir.join("x"))
}

/// The child: makes each call, in a directory `sled` and in another one, and reports the calls that
/// failed with the `errno` of the fault.
pub(crate) fn every_call(dir: &Path, report: &Report) {
    for place in ["sled", "other"] {
        let place = dir.join(place);
        for (call, make) in CALLED {
            if make(&place).is_err_and(|err| err.raw_os_error() == Some(libc::EXDEV)) {
                report.send(&Event::Burst(format!("{} {call:?}", place.display())));
            }
        }
    }
}

#[test]
fn the_library_fails_the_selected_calls() {
    for (call, name) in KINDS {
        let Some(nth) = CALLED.iter().position(|(called, _)| *called == call) else { continue };
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("spool");
        for sub in ["sled", "other"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
            fs::write(dir.join(sub).join("x"), "12345678").unwrap();
            fs::write(dir.join(sub).join("y"), "").unwrap();
        }
        let control = Control::create(place.path().join("control"));
        control.arm(Fault { calls: call.bit(), skip: 0, count: 1, errno: libc::EXDEV });
        let task = Task { what: What::Probe, ending: Ending::Orderly, seed: 0 };
        let mut failed = Vec::new();
        let end =
            run(task, &dir, Some(&control), &place.path().join("log"), |event| failed.push(event.clone()));
        assert_eq!(end, End::Done, "{name}");
        let expected = Event::Burst(format!("{} {:?}", dir.join("sled").display(), CALLED[nth].0));
        assert_eq!(failed, [expected], "{name}");
        assert_eq!(control.failed(), 1, "{name}");
        assert!(control.seen(call) >= 1, "{name}");
    }
}
