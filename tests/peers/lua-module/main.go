// Runs a health check as Argo CD does: a Lua script that finds the object as `obj` and gives back a table with a status and a
// message. Reads {"script": ..., "object": ...} and prints the table as JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	lua "github.com/yuin/gopher-lua"
)

func value(state *lua.LState, of any) lua.LValue {
	switch of := of.(type) {
	case bool:
		return lua.LBool(of)
	case float64:
		return lua.LNumber(of)
	case string:
		return lua.LString(of)
	case []any:
		table := state.NewTable()
		for _, one := range of {
			table.Append(value(state, one))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, one := range of {
			table.RawSetString(key, value(state, one))
		}
		return table
	default:
		return lua.LNil
	}
}

func run() error {
	var asked struct {
		Script string
		Object map[string]any
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		return err
	}
	// No library that reaches out of the script, as there.
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, open := range []lua.LGFunction{lua.OpenBase, lua.OpenTable, lua.OpenString, lua.OpenMath} {
		state.Push(state.NewFunction(open))
		state.Call(0, 0)
	}
	ends, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ends)
	state.SetGlobal("obj", value(state, asked.Object))
	if err := state.DoString(asked.Script); err != nil {
		return err
	}
	table, is := state.Get(-1).(*lua.LTable)
	if !is {
		return fmt.Errorf("the script gave back %s", state.Get(-1).Type())
	}
	said := map[string]string{}
	table.ForEach(func(key, one lua.LValue) { said[key.String()] = one.String() })
	return json.NewEncoder(os.Stdout).Encode(said)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
