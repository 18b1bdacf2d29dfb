// The Runge-Kutta methods of `odestream.runtime.contract.tableau`, where their sources stand, by name.
#pragma once

namespace odestream {

// a: [stages, stages]; error is null and order 0 without an estimate; bound: of stability on the real axis.
struct Method {
    const char* name;
    int stages, fsal, order;
    double bound;
    const double *a, *b, *c, *error;
};

namespace coefficients {

constexpr double EULER_A[] = {0}, EULER_B[] = {1}, EULER_C[] = {0};
constexpr double MIDPOINT_A[] = {0, 0, 1.0 / 2, 0}, MIDPOINT_B[] = {0, 1}, MIDPOINT_C[] = {0, 1.0 / 2};
constexpr double HEUN_A[] = {0, 0, 1, 0}, HEUN_B[] = {1.0 / 2, 1.0 / 2}, HEUN_C[] = {0, 1};
constexpr double HEUN21_ERROR[] = {-1.0 / 2, 1.0 / 2};
constexpr double RK4_A[] = {0, 0, 0, 0, 1.0 / 2, 0, 0, 0, 0, 1.0 / 2, 0, 0, 0, 0, 1, 0};
constexpr double RK4_B[] = {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6}, RK4_C[] = {0, 1.0 / 2, 1.0 / 2, 1};
constexpr double BOSH32_A[] = {0, 0, 0, 0, 1.0 / 2, 0, 0, 0, 0, 3.0 / 4, 0, 0, 2.0 / 9, 1.0 / 3, 4.0 / 9, 0};
constexpr double BOSH32_B[] = {2.0 / 9, 1.0 / 3, 4.0 / 9, 0}, BOSH32_C[] = {0, 1.0 / 2, 3.0 / 4, 1};
constexpr double BOSH32_ERROR[] = {-5.0 / 72, 1.0 / 12, 1.0 / 9, -1.0 / 8};
constexpr double DOPRI54_A[] = {
    0, 0, 0, 0, 0, 0, 0,                                                                                      //
    1.0 / 5, 0, 0, 0, 0, 0, 0,                                                                                //
    3.0 / 40, 9.0 / 40, 0, 0, 0, 0, 0,                                                                        //
    44.0 / 45, -56.0 / 15, 32.0 / 9, 0, 0, 0, 0,                                                              //
    19372.0 / 6561, -25360.0 / 2187, 64448.0 / 6561, -212.0 / 729, 0, 0, 0,                                   //
    9017.0 / 3168, -355.0 / 33, 46732.0 / 5247, 49.0 / 176, -5103.0 / 18656, 0, 0,                            //
    35.0 / 384, 0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84, 0};
constexpr double DOPRI54_B[] = {35.0 / 384, 0, 500.0 / 1113, 125.0 / 192, -2187.0 / 6784, 11.0 / 84, 0};
constexpr double DOPRI54_C[] = {0, 1.0 / 5, 3.0 / 10, 4.0 / 5, 8.0 / 9, 1, 1};
constexpr double DOPRI54_ERROR[] = {71.0 / 57600,      0,          -71.0 / 16695, 71.0 / 1920,
                                    -17253.0 / 339200, 22.0 / 525, -1.0 / 40};

}  // namespace coefficients

constexpr Method METHODS[] = {
    {"euler", 1, 0, 0, 2.0, coefficients::EULER_A, coefficients::EULER_B, coefficients::EULER_C, nullptr},
    {"midpoint", 2, 0, 0, 2.0, coefficients::MIDPOINT_A, coefficients::MIDPOINT_B, coefficients::MIDPOINT_C, nullptr},
    {"heun", 2, 0, 0, 2.0, coefficients::HEUN_A, coefficients::HEUN_B, coefficients::HEUN_C, nullptr},
    {"rk4", 4, 0, 0, 2.785293, coefficients::RK4_A, coefficients::RK4_B, coefficients::RK4_C, nullptr},
    {"heun21", 2, 0, 1, 2.0, coefficients::HEUN_A, coefficients::HEUN_B, coefficients::HEUN_C,
     coefficients::HEUN21_ERROR},
    {"bosh32", 4, 1, 2, 2.512745, coefficients::BOSH32_A, coefficients::BOSH32_B, coefficients::BOSH32_C,
     coefficients::BOSH32_ERROR},
    {"dopri54", 7, 1, 4, 3.3065, coefficients::DOPRI54_A, coefficients::DOPRI54_B, coefficients::DOPRI54_C,
     coefficients::DOPRI54_ERROR},
};

}  // namespace odestream
