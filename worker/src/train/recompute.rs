//! Gradient checkpointing: a block of the forward pass keeps its input alone, and
//! is computed again when the backward pass reaches it. Memory then holds the
//! activations of one block instead of all, for about a third more arithmetic.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// The blocks of one forward pass, in order.
#[derive(Debug)]
pub struct Tape<B> {
    steps: Mutex<Vec<Step<B>>>,
}

/// One block: what led to it, and the two cuts in the graph around it.
#[derive(Debug)]
struct Step<B> {
    /// The input, with the graph that leads back to the block before.
    before: Tensor,
    /// The output as a leaf, where the graph of what follows ends.
    exit: Var,
    block: B,
}

impl<B> Default for Tape<B> {
    fn default() -> Self {
        let steps = Mutex::default();
        Self { steps }
    }
}

impl<B> Tape<B> {
    /// Computes `block` on `x` and forgets how.
    ///
    /// # Errors
    /// When `compute` fails.
    pub fn forward(
        &self,
        x: Tensor,
        block: B,
        compute: impl FnOnce(&Tensor, &B) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let output = compute(&x.detach(), &block)?;
        if !x.track_op() && !output.track_op() {
            // Nothing up to here learns: there is nothing to go back for.
            return Ok(output);
        }
        // Letting go of the output's graph is what saves the memory.
        let exit = Var::from_tensor(&output.detach())?;
        let output = exit.as_tensor().clone();
        let step = Step {
            before: x,
            exit,
            block,
        };
        self.steps().push(step);
        Ok(output)
    }

    /// Gradients of `loss`, computing each block again on the way back.
    ///
    /// # Errors
    /// When `compute` or the device fails.
    pub fn backward(
        &self,
        loss: &Tensor,
        compute: impl Fn(&Tensor, &B) -> Result<Tensor>,
    ) -> Result<GradStore> {
        let mut gradients = loss.backward()?;
        loop {
            let Some(step) = self.steps().pop() else {
                return Ok(gradients);
            };
            // A block that the loss does not depend on has no part in it.
            let Some(gradient) = gradients.remove(step.exit.as_tensor()) else {
                continue;
            };
            let entry = Var::from_tensor(&step.before.detach())?;
            let output = compute(entry.as_tensor(), &step.block)?;
            gradients.extend(pull(&output, &gradient)?)?;
            if let Some(gradient) = gradients.remove(entry.as_tensor()) {
                gradients.extend(pull(&step.before, &gradient)?)?;
            }
        }
    }

    fn steps(&self) -> MutexGuard<'_, Vec<Step<B>>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gradients of everything that `output` depends on, given its own.
fn pull(output: &Tensor, gradient: &Tensor) -> Result<GradStore> {
    (output * gradient)?.sum_all()?.backward()
}
