//! No process has the spool open when sled's files are struck.

use tidespool_testkit::rng::Rng;

use super::images::State;
use super::strike::strike;
use super::*;

/// Strikes each file, and all of them, in copies of a spool, and opens each copy.
async fn costs_nothing(state: State, ways: &'static [Way]) {
    let images = Arc::new(Images::new().await);
    let mut cases = Vec::new();
    for &way in ways {
        cases.extend(Target::each(&images.path(state)).into_iter().map(|target| (way, target)));
    }
    each_case(cases, |(way, target)| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(state);
            strike(&config.path, way, &target, &images.donors(), &mut Rng::new(1));
            assert_is_whole(&config, &images.book).await;
        }
    })
    .await;
}

const LENGTH: &[Way] = &[Way::Delete, Way::Empty, Way::CutShort];
const BYTES: &[Way] = &[Way::Zero, Way::ZeroPart, Way::Garbage, Way::GarbagePart];
const EXCHANGE: &[Way] = &[Way::Older, Way::OlderInPlace, Way::Foreign, Way::ForeignInPlace];
const ACCESS: &[Way] = &[Way::Forbid, Way::Directory];

alone_tests! {
    deleted_or_cut_short_after_an_orderly_end: costs_nothing(State::Closed, LENGTH);
    deleted_or_cut_short_after_a_kill: costs_nothing(State::Killed, LENGTH);
    other_bytes_after_an_orderly_end: costs_nothing(State::Closed, BYTES);
    other_bytes_after_a_kill: costs_nothing(State::Killed, BYTES);
    other_files_after_an_orderly_end: costs_nothing(State::Closed, EXCHANGE);
    other_files_after_a_kill: costs_nothing(State::Killed, EXCHANGE);
    unreadable_after_an_orderly_end: costs_nothing(State::Closed, ACCESS);
    unreadable_after_a_kill: costs_nothing(State::Killed, ACCESS);
    /// The images are whole, or the tests above would test something else.
    images_are_whole: async {
        let images = Images::new().await;
        for state in [State::Closed, State::Killed] {
            let (_dir, config) = images.copy(state);
            assert_is_whole(&config, &images.book).await;
        }
    };
    /// A process that may write everywhere can't be stopped by a mode: the directory's name is
    /// another file's, or leads nowhere.
    a_file_in_place_of_the_directory: something_else_has_the_name();
}

async fn something_else_has_the_name() {
    let images = Arc::new(Images::new().await);
    for state in [State::Closed, State::Killed] {
        each_case(["a file", "a link that leads nowhere"], |what| {
            let images = images.clone();
            async move {
                let (_dir, config) = images.copy(state);
                let sled = config.path.join("sled");
                std::fs::remove_dir_all(&sled).unwrap();
                match what {
                    "a file" => std::fs::write(&sled, "not a directory").unwrap(),
                    _ => std::os::unix::fs::symlink("nowhere", &sled).unwrap(),
                }
                assert_is_whole(&config, &images.book).await;
            }
        })
        .await;
    }
}
