/* The two checks of numbers that every step makes, as a module of Python's stable ABI; see runtime/guards.py.
 *
 * An engine's call streams through its code and weights and leaves little else in the caches. What comes after it is
 * priced by the code that it touches, and a call of numpy touches a lot: this is the same in a few cache lines.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* the first that holds the buffer protocol */
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define LONG (1 << 18) /* bytes from which on other threads may run meanwhile */

static uint32_t bits_of(const char* values, Py_ssize_t i) {
  uint32_t bits;
  memcpy(&bits, values + 4 * i, 4);
  return bits;
}

/* NaN and infinity are the numbers whose exponent is all ones: one more, and it carries into the sign. */
static uint32_t carried(uint32_t bits) { return (bits & 0x7fffffffu) + 0x00800000u; }

/* Four quarters at once: a new state comes from the second or third cache, which then has four streams to fetch. */
static inline __attribute__((always_inline)) int scan(const char* values, Py_ssize_t count) {
  const Py_ssize_t quarter = count / 4;
  uint32_t found = 0;
  for (Py_ssize_t i = 0; i < quarter; ++i) {
    found |= carried(bits_of(values, i)) | carried(bits_of(values, i + quarter));
    found |= carried(bits_of(values, i + 2 * quarter)) | carried(bits_of(values, i + 3 * quarter));
  }
  for (Py_ssize_t i = 4 * quarter; i < count; ++i) found |= carried(bits_of(values, i));
  return found >> 31 == 0;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static int scan_avx2(const char* values, Py_ssize_t count) {
  return scan(values, count);
}

static int all_finite(const char* values, Py_ssize_t count) {
  return __builtin_cpu_supports("avx2") ? scan_avx2(values, count) : scan(values, count);
}
#else
static int all_finite(const char* values, Py_ssize_t count) { return scan(values, count); }
#endif

static int is_float32(const Py_buffer* view) {
  return view->format != NULL && strcmp(view->format, "f") == 0;
}

static int same_shape(const Py_buffer* a, const Py_buffer* b) {
  if (a->ndim != b->ndim) return 0;
  for (int axis = 0; axis < a->ndim; ++axis)
    if (a->shape[axis] != b->shape[axis]) return 0;
  return 1;
}

static PyObject* tell_finite(PyObject* module, PyObject* values) {
  Py_buffer view;
  (void)module;
  if (PyObject_GetBuffer(values, &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) < 0) return NULL;
  const int plain = is_float32(&view);
  int found = 0;
  if (plain && view.len < LONG) {
    found = all_finite(view.buf, view.len / 4);
  } else if (plain) {
    Py_BEGIN_ALLOW_THREADS;
    found = all_finite(view.buf, view.len / 4);
    Py_END_ALLOW_THREADS;
  }
  PyBuffer_Release(&view);
  if (plain) return PyBool_FromLong(found);
  PyErr_SetString(PyExc_TypeError, "values are not of float32; give a contiguous array of float32");
  return NULL;
}

/* Whether a tick is an int of 64 bits after `last`, which is one; no error is left. */
static int advances(PyObject* tick, PyObject* last) {
  int beyond = 0;
  if (!PyLong_CheckExact(tick)) return 0;
  const long long now = PyLong_AsLongLongAndOverflow(tick, &beyond);
  const long long before = PyLong_AsLongLong(last);
  if (before == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    return 0;
  }
  return !beyond && now > before;
}

/* Copy values into target if both are contiguous float32 of one shape; whether they are, and finite. */
static int take(PyObject* from, PyObject* to) {
  Py_buffer values, target;
  if (PyObject_GetBuffer(to, &target, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0) return -1;
  if (PyObject_GetBuffer(from, &values, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) < 0) {
    PyErr_Clear(); /* no buffer at all, or one with gaps: for numpy to read */
    PyBuffer_Release(&target);
    return 0;
  }
  const int plain = is_float32(&values) && is_float32(&target) && same_shape(&values, &target);
  if (plain) memmove(target.buf, values.buf, (size_t)target.len);
  const int found = plain && all_finite(target.buf, target.len / 4);
  PyBuffer_Release(&values);
  PyBuffer_Release(&target);
  return found;
}

static PyObject* advance(PyObject* module, PyObject* const* arguments, Py_ssize_t count) {
  (void)module;
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "advance needs four arguments; give values, target, tick and last");
    return NULL;
  }
  const int found = advances(arguments[2], arguments[3]) ? take(arguments[0], arguments[1]) : 0;
  return found < 0 ? NULL : PyBool_FromLong(found);
}

static PyMethodDef methods[] = {
    {"finite", tell_finite, METH_O, "Whether a contiguous buffer of float32 holds neither NaN nor infinity."},
    {"advance", (PyCFunction)(void (*)(void))advance, METH_FASTCALL,
     "Copy values into target, a writable contiguous float32, and tell whether all is plainly well: contiguous float32 "
     "of its shape, finite, and tick an int of 64 bits after last."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "odestream_guards",
    .m_doc = "The checks of odestream.runtime.guards, compiled.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_odestream_guards(void) { return PyModuleDef_Init(&definition); }
