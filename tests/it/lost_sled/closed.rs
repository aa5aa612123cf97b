//! Damage to sled's files while no process has the spool open.

use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::images::State;
use super::strike::strike;
use super::*;

/// Damages each file, and all files, in copies of a spool, and opens each copy.
async fn loses_nothing(state: State, ways: &'static [Way]) {
    let images = Arc::new(Images::new().await);
    let mut cases = Vec::new();
    for &way in ways {
        cases.extend(Target::each(&images.path(state)).into_iter().map(|target| (way, target)));
    }
    each_case(cases, |(way, target)| {
        let images = images.clone();
        async move {
            let (_dir, config) = images.copy(state);
            strike(&config.path, way, &target, &images.donors(), &mut SmallRng::seed_from_u64(1));
            assert_is_whole(&config, &images.expected).await;
        }
    })
    .await;
}

const LENGTH: &[Way] = &[Way::Delete, Way::Empty, Way::CutShort];
const BYTES: &[Way] = &[Way::Zero, Way::ZeroPart, Way::Garbage, Way::GarbagePart];
const EXCHANGE: &[Way] = &[Way::Older, Way::OlderInPlace, Way::Foreign, Way::ForeignInPlace];
const ACCESS: &[Way] = &[Way::Forbid, Way::Directory];

alone_tests! {
    deleted_or_truncated_after_a_shutdown: loses_nothing(State::Closed, LENGTH);
    deleted_or_truncated_after_a_kill: loses_nothing(State::Killed, LENGTH);
    overwritten_after_a_shutdown: loses_nothing(State::Closed, BYTES);
    overwritten_after_a_kill: loses_nothing(State::Killed, BYTES);
    exchanged_after_a_shutdown: loses_nothing(State::Closed, EXCHANGE);
    exchanged_after_a_kill: loses_nothing(State::Killed, EXCHANGE);
    unreadable_after_a_shutdown: loses_nothing(State::Closed, ACCESS);
    unreadable_after_a_kill: loses_nothing(State::Killed, ACCESS);
    /// Checks the images that the other tests start with.
    images_are_whole: async {
        let images = Images::new().await;
        for state in [State::Closed, State::Killed] {
            let (_dir, config) = images.copy(state);
            assert_is_whole(&config, &images.expected).await;
        }
    };
    /// A mode does not stop a process of root, so the directory is replaced by a file or a dangling
    /// link.
    a_file_in_place_of_the_directory: directory_is_replaced();
}

async fn directory_is_replaced() {
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
                assert_is_whole(&config, &images.expected).await;
            }
        })
        .await;
    }
}
