//! Memory for kernels: aligned buffers, disjoint writing from several tasks, and scratch that tasks borrow.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// f32 values on cache-line boundaries. Grows, never shrinks.
#[derive(Default)]
pub(super) struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Buffer {
    pub(super) fn zeros(len: usize) -> Self {
        Self { lines: vec![Line([0.0; 16]); len.div_ceil(16)], len }
    }

    /// Makes the buffer `len` long; what it held is kept as far as it fits.
    pub(super) fn resize(&mut self, len: usize) {
        if len.div_ceil(16) > self.lines.len() {
            self.lines.resize(len.div_ceil(16), Line([0.0; 16]));
        }
        self.len = len;
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `Line` is sixteen f32 without padding, and `len` is at most sixteen times their number.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// A slice that several tasks write at once, each in its own places.
pub(super) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out what a `&mut [T]` could be split into; that the parts are disjoint is what the
// callers of its unsafe functions promise.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// # Safety
    /// While the returned slice lives, no other part that overlaps it is in use.
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part lies inside the slice");
        // SAFETY: inside the slice by the assertion, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// # Safety
    /// As for [`Disjoint::part`], for the one element.
    pub(super) unsafe fn at(&self, index: usize) -> &'a mut T {
        assert!(index < self.len, "index lies inside the slice");
        // SAFETY: inside the slice by the assertion, not aliased by the caller's promise.
        unsafe { &mut *self.start.add(index) }
    }

    /// The address of an element, for code that writes a tile of rows from there on.
    ///
    /// # Safety
    /// What is read or written through it lies inside the slice, and nobody else uses it meanwhile.
    pub(super) unsafe fn pointer(&self, index: usize) -> *mut T {
        assert!(index < self.len, "index lies inside the slice");
        // SAFETY: inside the slice by the assertion.
        unsafe { self.start.add(index) }
    }
}

/// Things that tasks borrow and give back, so that nothing is allocated once every thread has had one.
#[derive(Default)]
pub(super) struct Spares<T> {
    free: Mutex<Vec<T>>,
}

impl<T: Default> Spares<T> {
    /// Runs `task` with a spare. What the spare holds at first is unspecified.
    pub(super) fn with<R>(&self, task: impl FnOnce(&mut T) -> R) -> R {
        let taken = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut spare = taken.unwrap_or_default();
        let result = task(&mut spare);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(spare);
        result
    }
}
