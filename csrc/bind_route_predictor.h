#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

// Adds the class RoutePredictor to the module.
void bind_route_predictor(pybind11::module_& m);
