use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;

use crate::{NotFound, Spool, SpoolId};

/// Conveniences over the calls of [`Spool`], for every spool and for `dyn Spool`.
///
/// A spool may have methods of the same names that do less work; these are called first.
pub trait SpoolExt: Spool {
    /// Returns the bytes of the message `id`, to share among tasks.
    ///
    /// # Errors
    ///
    /// The errors of [`Spool::load`].
    fn load_shared(&self, id: SpoolId) -> impl Future<Output = Result<Arc<Box<[u8]>>>> + Send {
        async move { Ok(Arc::new(self.load(id).await?.into_boxed_slice())) }
    }

    /// Returns whether there is a message `id`. Reads the message.
    ///
    /// # Errors
    ///
    /// The errors of [`Spool::load`], apart from [`NotFound`].
    fn contains(&self, id: SpoolId) -> impl Future<Output = Result<bool>> + Send {
        async move { Ok(self.size(id).await?.is_some()) }
    }

    /// Returns the length of the message `id` in bytes, or `None` if there is no such message.
    /// Reads the message.
    ///
    /// # Errors
    ///
    /// The errors of [`Spool::load`], apart from [`NotFound`].
    fn size(&self, id: SpoolId) -> impl Future<Output = Result<Option<u64>>> + Send {
        async move {
            match self.load(id).await {
                Ok(data) => Ok(Some(data.len() as u64)),
                Err(error) if error.root_cause().is::<NotFound>() => Ok(None),
                Err(error) => Err(error),
            }
        }
    }

    /// Writes the message `id`, or replaces it, as [`Spool::store`] does. Copies `data`.
    ///
    /// # Errors
    ///
    /// The errors of [`Spool::store`].
    fn store_bytes(
        &self,
        id: SpoolId,
        data: Bytes,
        force_sync: bool,
        deadline: Option<Instant>,
    ) -> impl Future<Output = Result<()>> + Send {
        let data = Arc::new(Box::from(&data[..]));
        async move { self.store(id, data, force_sync, deadline).await }
    }
}

impl<S: Spool + ?Sized> SpoolExt for S {}
