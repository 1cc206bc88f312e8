// Nothing takes the place of the program in packages that nobody runs.
package main

func main() {}
