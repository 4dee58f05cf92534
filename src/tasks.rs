//! Spawning on the thread that one stands on: the only place that does.
//!
//! A task spawned here lives and dies with its worker. Whoever calls [`spawn`] owns the task and says, at the call,
//! what ends it.

use std::future::Future;

use tokio::task::JoinHandle;

/// Spawns a task on this worker.
#[allow(clippy::disallowed_methods, reason = "this is the one place that spawns")]
pub fn spawn<F: Future<Output: 'static> + 'static>(future: F) -> JoinHandle<F::Output> {
    tokio::task::spawn_local(future)
}

/// A task that ends with its owner.
pub struct Owned(JoinHandle<()>);

impl Owned {
    /// Spawns a task that is aborted when the handle is dropped.
    pub fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Owned(spawn(future))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Spawns hyper's HTTP/2 tasks: they end with their connection.
#[derive(Clone, Copy)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        spawn(future);
    }
}
