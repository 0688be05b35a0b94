//! The one trait behind which a matrix product sits. The models ask a
//! [`Maker`] for a product of given weights and never see in what form it
//! keeps them or on which device it runs.

mod dense;
mod packed;
mod stacked;

pub use dense::Dense;
pub use packed::Packed;
pub use stacked::Stacked;

use candle_core::{DType, Device, Result, Tensor};
use std::fmt::{self, Debug, Display};
use std::str::FromStr;
use std::sync::Arc;

/// A product with fixed weights.
pub trait Product: Debug + Send + Sync {
    /// `x` `[rows, inputs]` times the weights: `[rows, outputs]`. Each row's
    /// result depends on that row alone, to the last bit on the CPU.
    ///
    /// # Errors
    /// The shape of `x` does not fit, or the device failed.
    fn multiply(&self, x: &Tensor) -> Result<Tensor>;

    /// Rows of `x` are this long.
    fn inputs(&self) -> usize;

    /// Rows of the result are this long.
    fn outputs(&self) -> usize;

    /// Memory that the weights take, in bytes.
    fn bytes(&self) -> usize;
}

/// In what form the language model's weights are kept. Vision towers are
/// always dense: they are small, and rounding them costs more than it saves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    /// As the checkpoint has them.
    #[default]
    Dense,
    /// Rounded to 8 bits in groups of 64.
    Int8,
    /// Rounded to 4 bits in groups of 32; the output head to 8.
    Int4,
}

impl WeightFormat {
    /// The form of the output head, whose errors no later layer evens out.
    pub fn of_head(self) -> Self {
        match self {
            Self::Int4 => Self::Int8,
            other => other,
        }
    }
}

impl Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dense => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        })
    }
}

/// The text names no form of weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no form of weights: none, int8 or int4 is needed")]
pub struct BadWeightFormat(String);

impl FromStr for WeightFormat {
    type Err = BadWeightFormat;

    fn from_str(text: &str) -> std::result::Result<Self, BadWeightFormat> {
        [Self::Dense, Self::Int8, Self::Int4]
            .into_iter()
            .find(|format| format.to_string() == text)
            .ok_or_else(|| BadWeightFormat(text.to_owned()))
    }
}

/// Makes products for one device in one form.
#[derive(Debug, Clone)]
pub struct Maker {
    device: Device,
    dtype: DType,
    format: WeightFormat,
}

impl Maker {
    /// Products on `device` with activations of `dtype`, as dense weights.
    pub fn new(device: Device, dtype: DType) -> Self {
        Self {
            device,
            dtype,
            format: WeightFormat::Dense,
        }
    }

    /// The same with weights in another form.
    #[must_use]
    pub fn with_format(&self, format: WeightFormat) -> Self {
        Self {
            format,
            ..self.clone()
        }
    }

    /// Where the products run.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The element type of what goes in and comes out.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// A product with row-major weights `[outputs, inputs]`.
    ///
    /// # Errors
    /// The weights do not fill their shape, or the device has no room or no
    /// products in this form.
    pub fn make(
        &self,
        weights: Vec<f32>,
        outputs: usize,
        inputs: usize,
    ) -> Result<Arc<dyn Product>> {
        Ok(match (self.device.is_cpu(), self.format) {
            (true, WeightFormat::Dense) => Arc::new(Packed::dense(&weights, outputs, inputs)),
            (true, WeightFormat::Int8) => Arc::new(Packed::int8(&weights, outputs, inputs)),
            (true, WeightFormat::Int4) => Arc::new(Packed::int4(&weights, outputs, inputs)),
            (false, WeightFormat::Dense) => Arc::new(Dense::new(
                weights,
                outputs,
                inputs,
                &self.device,
                self.dtype,
            )?),
            (false, format) => candle_core::bail!("weights of {format} are for the CPU only"),
        })
    }

    /// A tensor of `shape` on the device, for norms, biases and embeddings.
    ///
    /// # Errors
    /// The values do not fill the shape, or the device has no room.
    pub fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec(values, shape, &self.device)?.to_dtype(self.dtype)
    }
}
