//! The differentiable operations that a LLaVA step is made of. Each has two
//! bodies: a fused one with its own backward pass for f32 on the CPU, where many
//! small operations would cost more than the arithmetic, and one composed of
//! candle operations for every other device and type, which is also the oracle
//! that the fused one is tested against.

mod activation;
mod attention;
mod floats;
mod linear;
mod loss;
mod norm;
mod product;
mod simd;

pub use activation::{quick_gelu, swiglu};
pub use attention::{Attention, Rope, Segments, attention};
pub use linear::linear;
pub use loss::{Targets, cross_entropy};
pub use norm::{layer_norm, rms_norm};

pub(super) use floats::floats;
pub(super) use simd::{AdamStep, adamw_update, sum_of_squares};

use candle_core::{DType, Tensor};

fn fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

#[cfg(test)]
mod testing {
    //! Compares values and gradients of a fused operation with its composed twin.

    use candle_core::{Device, Result, Tensor, Var};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    pub(super) fn random(shape: &[usize], seed: u64) -> Var {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| rng.random_range(-1.5..1.5)).collect();
        Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
    }

    pub(super) fn agree(
        inputs: &[Var],
        fused: impl Fn(&[Tensor]) -> Result<Tensor>,
        composed: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let tensors: Vec<Tensor> = inputs.iter().map(|v| v.as_tensor().clone()).collect();
        let (a, b) = (fused(&tensors).unwrap(), composed(&tensors).unwrap());
        close("value", &a, &b);
        let weight = random(a.dims(), 99);
        let grads = |y: &Tensor| {
            (y * weight.as_tensor())
                .unwrap()
                .sum_all()
                .unwrap()
                .backward()
                .unwrap()
        };
        let (ga, gb) = (grads(&a), grads(&b));
        for (i, input) in inputs.iter().enumerate() {
            close(
                &format!("gradient {i}"),
                ga.get(input).unwrap(),
                gb.get(input).unwrap(),
            );
        }
    }

    fn close(what: &str, a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims(), "{what}");
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (a, b) = (flat(a), flat(b));
        let scale = b.iter().fold(1f32, |m, v| m.max(v.abs()));
        for (x, y) in a.iter().zip(&b) {
            assert!((x - y).abs() <= 2e-5 * scale, "{what}: {x} against {y}");
        }
    }
}
