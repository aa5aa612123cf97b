//! What can be read of damaged files, around what can't.

use std::ops::Bound;

use super::key::{self, Key, KeyRange};
use super::worker::{Engine, Failure, guarded};
use super::{DurableError, SledStore};

/// Parts that are tried at most: each damaged place takes about 40.
const MAX_PARTS: usize = 4096;
/// How often a part is halved.
const MAX_DEPTH: u32 = 40;

/// Keys from one bound to the other.
#[derive(Clone)]
struct Part {
    from: Bound<Vec<u8>>,
    to: Bound<Vec<u8>>,
    depth: u32,
}

/// How far a walk came.
struct Walked {
    last: Option<Vec<u8>>,
    /// `false`: the visitor has seen enough.
    end: Result<bool, Failure>,
}

type Visit<'a> = &'a mut dyn FnMut(Key, &[u8]) -> bool;

impl SledStore {
    /// Visits every record that can be read, in no order, until `visit` returns `false`. Gives what stood in the way. Where reading fails on the way
    /// up it goes on from the other end, and then from the middle of what is left. Poisons nothing.
    ///
    /// # Errors
    ///
    /// Where it is not open.
    pub(crate) fn visit_readable(&self, visit: Visit<'_>) -> Result<Vec<String>, DurableError> {
        let engine = self.engine("reading")?;
        let mut found = Vec::new();
        let classes = KeyRange::classes().into_iter();
        let mut parts: Vec<Part> = classes
            .map(|class| Part {
                from: Bound::Included(class.start.to_vec()),
                to: Bound::Excluded(class.end.to_vec()),
                depth: 0,
            })
            .collect();
        let mut tried = 0;
        while let Some(mut part) = parts.pop() {
            tried += 1;
            for up in [true, false] {
                let walked = walk(&engine, &part, up, visit);
                match walked.end {
                    Ok(true) => {
                        part.depth = MAX_DEPTH;
                        break;
                    }
                    Ok(false) => return Ok(found),
                    Err(failure) if found.contains(&failure.what) => {}
                    Err(failure) => found.push(failure.what),
                }
                if let Some(last) = walked.last {
                    *(if up { &mut part.from } else { &mut part.to }) = Bound::Excluded(last);
                }
            }
            if part.depth < MAX_DEPTH && tried < MAX_PARTS {
                parts.extend(part.halves().into_iter().flatten());
            }
        }
        Ok(found)
    }
}

impl Part {
    /// Both halves of it, if there is anything between its bounds.
    fn halves(self) -> Option<[Self; 2]> {
        let key_of = |bound: &Bound<Vec<u8>>| match bound {
            Bound::Included(key) | Bound::Excluded(key) => Some(key.clone()),
            Bound::Unbounded => None,
        };
        let middle = key::middle(&key_of(&self.from)?, &key_of(&self.to)?)?.to_vec();
        let depth = self.depth + 1;
        Some([
            Self { from: self.from, to: Bound::Excluded(middle.clone()), depth },
            Self { from: Bound::Included(middle), to: self.to, depth },
        ])
    }
}

/// Visits a part from one end, until its other end or until something stands in the way.
fn walk(engine: &Engine, part: &Part, up: bool, visit: Visit<'_>) -> Walked {
    let mut last: Option<Vec<u8>> = None;
    let end = guarded(|| {
        let mut iter = engine.tree()?.range::<Vec<u8>, _>((part.from.clone(), part.to.clone()));
        loop {
            let next = if up { iter.next() } else { iter.next_back() };
            let Some((key, value)) = next.transpose()? else { return Ok(true) };
            // In damaged trees, going in circles is possible.
            let is_next = |last: &Vec<u8>| if up { key[..] > last[..] } else { key[..] < last[..] };
            if !last.as_ref().is_none_or(is_next) {
                return Err(Failure { what: "keys out of order".to_owned(), kind: None });
            }
            last = Some(key.to_vec());
            if let Ok(key) = Key::from_slice(&key)
                && !visit(key, &value)
            {
                return Ok(false);
            }
        }
    });
    Walked { last, end }
}
